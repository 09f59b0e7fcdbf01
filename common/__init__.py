"""What every package needs and none of them owns: errors, reading files, YAML and JSON."""
