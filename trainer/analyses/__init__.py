"""What ``twofold analyze`` measures, by what a model reads."""
