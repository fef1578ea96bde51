package io.pflmobile.core.state

import io.pflmobile.core.tensors.Tensor

/**
 * What personalization changed.
 *
 * @property tensors every device tensor by name
 * @property copies copies of tensors that phases train, by copy and tensor (Ditto, APFL)
 * @property words the user's words in slot order
 * @property metrics measured when the state was adopted
 */
public class PersonalState(
    public val tensors: Map<String, Tensor>,
    public val copies: Map<String, Map<String, Tensor>> = emptyMap(),
    public val words: List<String> = emptyList(),
    public val metrics: Map<String, Double> = emptyMap(),
)
