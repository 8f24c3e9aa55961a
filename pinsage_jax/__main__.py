"""`python -m pinsage_jax` runs the program, as `python -m pinsage_jax.main` does."""

from __future__ import annotations

from pinsage_jax import main

if __name__ == "__main__":
    main.run()
