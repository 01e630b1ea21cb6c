"""TorchX components that launch Twofold."""
