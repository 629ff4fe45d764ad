from noise_volumes import embedder, write

__all__ = ["embedder", "write"]
