"""Facts of this machine, files, child processes and signals: what every other package stands on."""
