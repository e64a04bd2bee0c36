"""`action=bench`: what a load is, who drives it, what is measured and how it is told."""
