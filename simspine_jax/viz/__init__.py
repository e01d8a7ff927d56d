"""Pictures of results: plots, and the motion in a browser. Import the module that is needed."""
