"""A decoder written without ever holding its weights: a skeleton traced through optimum, filled tensor by tensor."""
