"""TFX components that TFX lacks, and stock ones whose executor a user needs more of."""
