"""The mathematics as pure functions over tensors. Knows neither models nor configs."""
