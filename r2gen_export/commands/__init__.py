"""What the commands of `cli.py` do between parsing and the library: exit statuses, stdout, files, rendering."""
