"""What `r2gen bench` measures, judges and writes."""
