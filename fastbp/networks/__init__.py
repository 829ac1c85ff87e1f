"""Networks over one flat parameter vector: description, derivatives, objectives, single layers."""
