"""Live segmentation for people who look on: where frames come from, where labels go, and what is shown meanwhile."""
