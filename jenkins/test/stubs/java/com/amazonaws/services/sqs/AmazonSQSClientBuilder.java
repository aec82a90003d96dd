package com.amazonaws.services.sqs;

import com.amazonaws.ClientConfiguration;

import test.Sent;

public final class AmazonSQSClientBuilder {
    private String region;
    private ClientConfiguration configuration = new ClientConfiguration();

    private AmazonSQSClientBuilder() {
    }

    public static AmazonSQSClientBuilder standard() {
        return new AmazonSQSClientBuilder();
    }

    public AmazonSQSClientBuilder withRegion(String region) {
        this.region = region;
        return this;
    }

    public AmazonSQSClientBuilder withClientConfiguration(ClientConfiguration configuration) {
        this.configuration = configuration;
        return this;
    }

    public AmazonSQS build() {
        if (configuration.getClientExecutionTimeout() == 0) {
            throw new IllegalStateException("a call could last for ever");
        }
        return new AmazonSQS() {
            @Override
            public Object sendMessage(String target, String message) {
                Sent.add("sqs v1", region, target, message);
                return null;
            }

            @Override
            public void shutdown() {
            }
        };
    }
}
