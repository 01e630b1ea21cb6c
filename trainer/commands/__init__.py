"""The commands of ``twofold``, one file each: ``main(arguments) -> exit code``."""
