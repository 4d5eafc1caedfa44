"""The form in which an encoder serves."""
