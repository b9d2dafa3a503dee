"""Named tolerances: what each kind of equality is held to, and why."""

PARITY = 1e-9  # float64 outputs of the official code (its own rounding is about 1e-12)
# symmetric crystals put angles exactly on the edges of the released 4-sigma truncation: a bin more or less
BIN_EDGE_PARITY = 1e-5
BIN_EDGE_PARITY_OF_PREDICTIONS = 1e-6
INVARIANCE = 1e-9  # float64, other descriptions of a crystal with the same cell
CELL_INVARIANCE = 1e-6  # float64, other cells and supercells
KERNEL = 1e-10  # float64, fast path against reference
KERNEL_FLOAT32 = 1e-4  # relative
