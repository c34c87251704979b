"""Settings, database, object store, HTTP, audit, wire models and clients: what every service stands on."""
