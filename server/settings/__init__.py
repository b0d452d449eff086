"""The server's settings by what they are about; `server.config` puts them together and reads them."""
