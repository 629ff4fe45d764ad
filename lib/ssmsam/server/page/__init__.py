"""The server's own page: studies, annotation and a dashboard in the browser, over the same REST calls as any client."""
