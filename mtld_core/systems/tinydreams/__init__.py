"""TinyDreams: frames and controls in, the next frame out. nets and losses: parts; system: how they learn."""
