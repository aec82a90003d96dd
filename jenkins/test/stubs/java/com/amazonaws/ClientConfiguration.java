package com.amazonaws;

public class ClientConfiguration {
    private int clientExecutionTimeout;

    /** In milliseconds; none by default (its Javadoc). */
    public ClientConfiguration withClientExecutionTimeout(int clientExecutionTimeout) {
        this.clientExecutionTimeout = clientExecutionTimeout;
        return this;
    }

    public int getClientExecutionTimeout() {
        return clientExecutionTimeout;
    }
}
