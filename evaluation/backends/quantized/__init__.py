"""Stock models whose keys and values are kept in few bits: `quantized:bits=N`."""
