package com.amazonaws.services.sqs;

import test.Sent;

public final class AmazonSQSClientBuilder {
    private String region;

    private AmazonSQSClientBuilder() {
    }

    public static AmazonSQSClientBuilder standard() {
        return new AmazonSQSClientBuilder();
    }

    public AmazonSQSClientBuilder withRegion(String region) {
        this.region = region;
        return this;
    }

    public AmazonSQS build() {
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
