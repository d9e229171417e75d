"""Files of others, and the folder that we hand on."""
