"""Stock models whose cache is compressed by a press of kvpress: `kvpress:PRESS`."""
