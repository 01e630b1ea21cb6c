"""Tables, search, attention and rankers: tensors in, tensors out."""
