"""The bundled world: drawn shapes, questions about them, and small models trained on both."""
