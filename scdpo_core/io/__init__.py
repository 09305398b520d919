"""Files and images: atomic writes, names that stay in a folder, and opening foreign images within limits."""
