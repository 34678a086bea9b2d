from genflow.draws.draws import Draws, philox

__all__ = ["Draws", "philox"]
