"""The API: thin routes over `gateway.operations`, problems by RFC 9457."""
