"""What is compiled for the host's processor, on first use: the optimizer's step and norms in float32."""
