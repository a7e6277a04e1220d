"""Models: folders, quantised weights, attention, the output layer's loss, class and value heads."""
