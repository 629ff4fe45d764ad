"""Every network and its weights: encoders, prompt decoders, few-shot decoders, the volume head."""
