"""A merchant's tables: schema, readers, checks, silo folders, and two sources of data."""
