"""Remembers. SQLAlchemy stays inside; what goes in and out are provisioning's types."""
