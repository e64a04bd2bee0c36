"""What the processes of a deployment do: front ends, coordinator, engine cores."""

__version__ = "0.1.0"
