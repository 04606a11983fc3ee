"""Access to datasets on object storage and web servers, and their local cache."""
