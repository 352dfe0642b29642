"""An atlas: many small studies over one pool of tasks, to learn forecasts from. See docs/atlas.md."""
