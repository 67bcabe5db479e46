"""Forward process, objective and reverse loop; a denoiser is only a callable here."""
