"""One third-party system a file: everything above imports the system through its file here."""
