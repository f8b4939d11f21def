"""The paper's tables and figures, measured again, and the page that reports them."""
