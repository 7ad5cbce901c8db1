"""Analysis by synthesis: energies, the search for latents, and what is fitted to them."""
