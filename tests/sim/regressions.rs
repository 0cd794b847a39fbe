//! What the simulation found, as short scripts.
