"""The study: the emotion model and its data put through every phase."""
