"""Rules: how one kind of layer makes its parameters' gradients."""
