"""Makes the trained model small by a recipe, and measures what it cost; TFX has no such thing."""

from .component import CompressionReport, Compressor

__all__ = ["CompressionReport", "Compressor"]
