Feature: Activating
  A code has few attempts and little time, and what a caller without the right password hears says nothing.

  Scenario: Wrong codes are counted, and the fifth is the last
    Given a person who has registered
    When they type a wrong code 5 times
    Then they hear that 4, 3, 2, 1, 0 attempts are left
    When they activate with the code of their mail
    Then the answer is 429 CodeAttemptsExhausted
    And it says when to try again
    When they ask for another code
    And they activate with the code of their second mail
    Then the answer is 200

  Scenario Outline: A code may be typed as people type it
    Given a person who has registered
    When they type the code with "<spacing>" around and inside
    Then the answer is 200

    Examples:
      | spacing |
      | a blank |
      | a tab   |
      | a hyphen |
      | a no-break space |

  Scenario Outline: What cannot be a code costs nothing
    Given a person who has registered
    When they type "<text>" for a code
    Then the answer is 422 ValidationError
    And it names the field "activation_code"
    And no attempt is used

    Examples:
      | text            |
      |                 |
      | 123             |
      | 12345678901     |
      | 12345x7890      |
      | -1              |
      | １２３４５６７８９０ |
      | ١٢٣٤٥٦٧٨٩٠      |
      | 1e9             |

  Scenario Outline: What is no text cannot be a code either
    Given a person who has registered
    When they send <json> for a code
    Then the answer is 422 ValidationError
    And no attempt is used

    Examples:
      | json                                                         |
      | {"activation_code": 1234567890}                              |
      | {"activation_code": null}                                    |
      | {"activation_code": ["1234567890"]}                          |
      | {"activation_code": true}                                    |
      | {}                                                           |
      | {"activation_code": "1234567890", "code": "1234567890"}      |
      | {"activation_code": "1234567890", "email": "a@example.test"} |

  Scenario: The short name of the field works as well
    Given a person who has registered
    When they send their code under the name "code"
    Then the answer is 200

  Scenario: A wrong password sounds like an unknown address
    Given a person who has registered
    And a new person
    When both activate with a password that is not theirs
    Then both hear 401 InvalidCredentials in the same bytes and headers

  Scenario: The right code again is no second activation
    Given a person with an active account
    When they activate with the code of their first mail
    Then the answer is 409 UserAlreadyActivated

  @strict
  Scenario: A code's time is short
    Given a person who has registered
    When their code has expired
    And they activate with the code of their mail
    Then the answer is 410 ActivationCodeExpired
    And it says where to get a new one
    When a stranger tries the same with a wrong password
    Then the answer is 401 InvalidCredentials
