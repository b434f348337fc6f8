"""AdamW with 8-bit states on the host, one fused pass over the weights."""
