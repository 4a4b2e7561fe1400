"""A folder that stands on PYTHONPATH of a run under chaos, for the one module that Python imports by itself."""
