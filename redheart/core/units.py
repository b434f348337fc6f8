"""Units of memory."""

MB = 1e6
MIB = 1 << 20
GIB = 1 << 30
