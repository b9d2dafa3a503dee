"""Former place of `crystals`, `encoders` and `mat2seq`."""
